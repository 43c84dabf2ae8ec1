"""The page that shows what is going on, and what feeds it."""
