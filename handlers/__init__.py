"""The Tornado skin: one file a resource, verbs that call a service."""
