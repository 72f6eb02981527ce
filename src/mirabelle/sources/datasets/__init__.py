"""Data sets: built-in ones, and readers for the user's files and folders."""
