"""The comparison of ways to pre-train on few labels; see `maskwright.medical.study.run.small_data_study`."""
