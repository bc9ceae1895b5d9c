"""`rela embed`: features of the images in any folder, in one file."""
