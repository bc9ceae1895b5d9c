"""`rela bench`: this code against its peers, on this machine, in one run. One file a row; none is imported unasked."""
