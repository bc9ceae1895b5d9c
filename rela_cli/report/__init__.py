"""Reports: everything here reads artifacts (JSON) only, so a table needs neither torch nor hydra."""
