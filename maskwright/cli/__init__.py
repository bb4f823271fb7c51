"""The command line: thin, one file a group of verbs. Each command calls one public function of the core."""
