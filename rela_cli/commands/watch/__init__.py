"""`rela watch`: a page in the browser, or text in the terminal, that follows the runs of an outputs folder."""
