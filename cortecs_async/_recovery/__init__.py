"""What outlives the process: promises in a journal, the reaper, and sweep."""
