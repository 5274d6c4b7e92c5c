/* Port I/O with random addresses, widths and values: what every emulated chip listens to.
 *
 * Left out is what only ends or silences this guest: reset and power, its console, and fw_cfg,
 * whose DMA writes into this guest's own memory. The PCI configuration ports have an attack of
 * their own (`pci-config`), and so have the ejection of PCI devices and their windows of ports.
 */
#include "attack.h"

#include <sys/io.h>

#define BATCH 4096

static const struct {
	uint16_t low, high;
} LEFT_OUT[] = {
	{0x64, 0x64}, {0x92, 0x92}, {0x3f8, 0x3ff}, {0x510, 0x51b}, {0x600, 0x63f},
	{0xb2, 0xb3}, {0xcf8, 0xcff}, {0xae00, 0xae17}, {0xb000, 0xb03f},
	{0xc000, 0xffff},
};

/* The chips of a PC: half of all accesses go to them. */
static const struct {
	uint16_t low, size;
} CHIPS[] = {
	{0x00, 16}, {0x20, 2}, {0x40, 4}, {0x60, 2}, {0x70, 2}, {0x80, 16}, {0xa0, 2}, {0xc0, 32},
	{0x170, 8}, {0x1f0, 8}, {0x376, 1}, {0x3c0, 32}, {0x3f0, 8}, {0x4d0, 2}, {0x505, 4},
	{0x660, 16}, {0x700, 64}, {0xa00, 32}, {0xaf00, 32}, {0xafe0, 4}, {0xb100, 64},
};

static int left_out(uint16_t port)
{
	for (unsigned each = 0; each < sizeof LEFT_OUT / sizeof *LEFT_OUT; each++)
		if (port + 3 >= LEFT_OUT[each].low && port <= LEFT_OUT[each].high)
			return 1;
	return 0;
}

static uint16_t draw(void)
{
	uint16_t port = chance() >> 20;

	if (below(2)) {
		unsigned chip = below(sizeof CHIPS / sizeof *CHIPS);

		port = CHIPS[chip].low + below(CHIPS[chip].size);
	}
	return left_out(port) ? 0x80 : port;
}

void portio(const struct words *words)
{
	if (iopl(3)) {
		note("this kernel gives nobody its ports\n");
		return;
	}
	while (!over()) {
		for (int each = 0; each < BATCH; each++) {
			uint16_t port = draw();
			uint32_t value = odd_number();

			switch (below(6)) {
			case 0: outb(value, port); break;
			case 1: outw(value, port); break;
			case 2: outl(value, port); break;
			case 3: inb(port); break;
			case 4: inw(port); break;
			default: inl(port); break;
			}
		}
		count(BATCH);
	}
}
