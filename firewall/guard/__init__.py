"""What a guard is: its graph, its compiled form, its calibration and its policy."""
