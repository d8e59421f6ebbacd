"""Text and page of the study on puns."""
