// Package calibrate makes a model's profile: which layers which prompts can
// spare, and the router that tells.
//
// # Basics
//
// [Run] goes through the stages of PuDDing (arXiv 2502.04348) in order: encode
// the examples; group prompts without a task by likeness; let the whole model
// answer those that have no answer; search omission sets for all prompts; measure
// every prompt's loss under every set; train the router; calibrate escalation; time
// routed decoding beside the whole model. That
// is a profile that can be used ([Options].Usable). Each task's own sets then make a
// better one.
//
// # Caveats
//
// Everything that was measured is kept in [Options].Folder, and a run with the
// same model, data and settings starts from it. The number of threads is one of
// the settings: llama.cpp's sums differ by it in their last digits, and a near-tie
// of the search can then go the other way. With a limit of time a run's result depends
// on the machine's speed.
package calibrate
