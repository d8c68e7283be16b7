"""MetaSchedule, TVM's tuner, as a slower alternative to the hand-written CPU schedules."""
