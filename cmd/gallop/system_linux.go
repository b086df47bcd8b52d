package main

import "golang.org/x/sys/unix"

// What a terminal's state is read and set by.
const getTermios, setTermios = unix.TCGETS, unix.TCSETS
