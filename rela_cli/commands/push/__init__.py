"""`rela push`: a backbone or an efficient dataset into a repository of the Hugging Face hub."""
