"""Recovery after a process dies: promises in a journal, the reaper, and sweep."""
