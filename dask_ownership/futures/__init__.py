"""The interface of tasks and futures, in any process that has an owner."""
