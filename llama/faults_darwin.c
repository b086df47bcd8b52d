#include "faults.h"

void gallop_catch_faults(void) {}
