/* Code without end: short pieces that are run once and then changed, so that an emulator which
 * keeps what it has translated keeps more and more of it.
 */
#include "attack.h"

#include <string.h>
#include <sys/mman.h>

#define PIECE 16
#define PIECES (1 << 20)

/* mov eax, NUMBER; jmp to the next piece */
static const uint8_t CODE[PIECE] = {0xb8, 0, 0, 0, 0, 0xeb, PIECE - 7};
#define RETURN 0xc3

void translate(const struct words *words)
{
	uint8_t *code = mmap(NULL, (size_t)PIECE * PIECES, PROT_READ | PROT_WRITE | PROT_EXEC,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void (*run)(void);

	if (code == MAP_FAILED) {
		note("there is no memory for code\n");
		return;
	}
	for (size_t each = 0; each < PIECES; each++)
		memcpy(code + each * PIECE, CODE, PIECE);
	ready();
	while (!over()) {
		/* A run through a part of it, so that the time is looked at. */
		size_t first = below(PIECES / 2), length = PIECES / 64;
		uint8_t *last = code + (first + length) * PIECE;

		for (size_t each = first; each < first + length; each++)
			code[each * PIECE + 1 + below(4)] = chance();
		*last = RETURN;
		memcpy(&run, &(uint8_t *){code + first * PIECE}, sizeof run);
		run();
		*last = CODE[0];
		count(length);
	}
}
