"""From a store on disk to rows in memory, and what shows that they are right."""
