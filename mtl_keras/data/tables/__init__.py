"""Tables of one's own: files or data frames, read, split, described and streamed."""
