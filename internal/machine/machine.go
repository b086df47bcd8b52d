// Package machine asks the operating system about the computer.
package machine
