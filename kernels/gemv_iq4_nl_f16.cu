// y[c] = W . x[c] + bias, W in IQ4_NL; codes.h tells how it lies and is multiplied.
#include "codes.h"

typedef FormCodes<4, 0, FLOAT, 0, StepsIq4> Form;
MUL_KERNELS_FEW(iq4_nl, Form)
