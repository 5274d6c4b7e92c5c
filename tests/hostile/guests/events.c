/* Has QEMU tell its owner something without end: each write to a register of the processors'
 * hot-plugging makes an event on QEMU's control socket, which the host's node reads.
 */
#include "attack.h"

#include <sys/io.h>

#define BATCH 256

/* On the boards `pc` and `q35`. */
static const uint16_t BASES[] = {0xaf00, 0x0cd8};

enum { SELECTOR = 0, COMMAND = 5, DATA = 8, STATUS_OF_EJECTION = 2 };

void events(const struct words *words)
{
	if (iopl(3)) {
		note("this kernel gives nobody its ports\n");
		return;
	}
	for (unsigned each = 0; each < sizeof BASES / sizeof *BASES; each++) {
		outl(0, BASES[each] + SELECTOR);
		outb(STATUS_OF_EJECTION, BASES[each] + COMMAND);
	}
	while (!over()) {
		for (int turn = 0; turn < BATCH; turn++)
			outl(turn, BASES[0] + DATA);
		for (int turn = 0; turn < BATCH; turn++)
			outl(turn, BASES[1] + DATA);
		count(2 * BATCH);
	}
}
