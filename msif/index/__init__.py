"""Gradients of documents, computed once and kept on disk: TrackStar and multi-stage influence for any later query."""
