"""`make init`: from a fresh clone of the template to a project of one's own. Used once."""
