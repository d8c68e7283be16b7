// Nothing: cuda.h beside this file has the half-precision types too.
#pragma once
#include "cuda.h"
