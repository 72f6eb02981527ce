"""Data sets: built-in ones, and files and folders as people have them."""
