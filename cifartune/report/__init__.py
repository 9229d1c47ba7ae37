"""What a search says of itself: tables first, then the terminal and the files."""
