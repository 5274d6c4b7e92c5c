/* Ejects its own PCI devices unasked, as the firmware of the board `pc` lets a guest do: its ports,
 * disks, cards and memories are then gone without the host's having taken them.
 */
#include "attack.h"

#include <sys/io.h>
#include <unistd.h>

#define SELECT 0xae10
#define EJECT 0xae08

void eject(const struct words *words)
{
	if (iopl(3)) {
		note("this kernel gives nobody its ports\n");
		return;
	}
	while (!over()) {
		outl(0, SELECT); /* the first bus */
		outl(1u << below(32), EJECT);
		if (below(8) == 0)
			outl(odd_number(), SELECT);
		if (below(8) == 0)
			outl(odd_number(), EJECT);
		inl(0xae00 + 4 * below(6));
		count(1);
		usleep(20000);
	}
}
