"""From rows in memory to a store on disk that a kill cannot harm."""
