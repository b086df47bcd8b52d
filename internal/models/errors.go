package models

import "errors"

// Errors of [Path] and [Find].
var (
	// ErrUnknown is returned when no file and no model has the name.
	ErrUnknown = errors.New("no such model")

	// ErrAmbiguous is returned when several models have the name.
	ErrAmbiguous = errors.New("several models have the name")

	// ErrMissing is returned when a store names the model, but its file is not there.
	ErrMissing = errors.New("the model's file is missing")
)

// Errors of [Hub.Fetch]. A full disk gives the system's error, an interrupt ctx's.
var (
	// ErrName is returned when what is asked for is not ORG/REPO or ORG/REPO:QUANT,
	// or the repository has no such file.
	ErrName = errors.New("no such model on the hub")

	// ErrAccess is returned when the hub wants another token, or one at all.
	ErrAccess = errors.New("the hub gives no access")

	// ErrHub is returned when the hub cannot be reached, fails or asks to wait, after
	// some tries.
	ErrHub = errors.New("the hub does not deliver")

	// ErrChecksum is returned when what came is not the file that the hub announced.
	ErrChecksum = errors.New("the file arrived damaged")

	// ErrBusy is returned when another process is fetching the same file.
	ErrBusy = errors.New("another process is fetching the model")
)
