"""Where the time of one order and of one quote goes, stage by stage."""
