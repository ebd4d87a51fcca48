// y[c] = W . x[c] + bias, W in IQ3_S; codes.h tells how it lies and is multiplied.
#include "codes.h"

typedef FormCodes<4, 0, TWO, 0, StepsIq3S> Form;
MUL_KERNELS_FEW(iq3_s, Form)
