"""Point clouds and meshes: files of objects, large scans, methods on points."""
