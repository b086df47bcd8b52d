// Package table measures the ways to choose masks that a profile knows against each
// other, on the same examples.
//
// # Basics
//
// A [Table] needs a model, a scorer and cases. Its methods give one row each, or the
// rows of one depth: [Table.Whole], [Table.Fixed], [Table.Adaptive], [Table.Generated].
// Losses and speeds are kept, so a mask that is in several rows is measured once.
//
// # Caveats
//
// A Table belongs to one goroutine. Speeds are those of this machine while the table
// is made: nothing else should run.
package table
