/* As Windows has it; see windows.h beside this file. */

#include <stdlib.h>

#define _aligned_malloc(bytes, alignment) aligned_alloc(alignment, bytes)
#define _aligned_free free
