// Empty: cuda.h in this folder also has the half-precision types.
#pragma once
#include "cuda.h"
