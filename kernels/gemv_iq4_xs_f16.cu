// y[c] = W . x[c] + bias, W in IQ4_XS; codes.h tells how it lies and is multiplied.
#include "codes.h"

typedef FormCodes<4, 0, TWO, 0, StepsIq4> Form;
MUL_KERNELS_FEW(iq4_xs, Form)
