// y[c] = W . x[c] + bias, W in Q4_1; codes.h tells how it lies and is multiplied.
#include "codes.h"

typedef FormCodes<4, 0, FLOAT_MIN, 0, NoSteps> Form;
MUL_KERNELS_FEW(q4_1, Form)
