"""The family `tidar`: drafts and their verification in one run."""
