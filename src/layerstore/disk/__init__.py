"""The disk below the store: small files, locks, holds, mounts, and who else uses the root."""
