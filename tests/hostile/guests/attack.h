/* What the attacks of a hostile guest share: time, chance, counting, and how they report. */
#ifndef ATTACK_H
#define ATTACK_H

#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>

/* Text that nothing but the attacker's own channels may carry, and text that is written only where
 * nothing may come back from: the sink of a one-way stream, the reader's side of a memory. */
struct words {
	const char *mark;
	const char *backward;
	uint16_t bait; /* a port of the host's loopback, where nobody must come */
};

/* Draws 64 bits; the seed was given on the command line, so that a run can be repeated. */
uint64_t chance(void);
/* One of the numbers below `bound`, which is not 0. */
uint64_t below(uint64_t bound);
/* A number that devices tend to get wrong: all ones, one past a power of two, or any. */
uint64_t odd_number(void);

/* Counts operations, also in children; whoever waits for the host sees that something goes on. */
void count(uint64_t operations);
/* Says that so many more, or fewer, of the things to attack are not there to be attacked. As long as
 * one is not, the attack reports no operations: it does not do what its name says. */
void lacks(int more);
/* Whether the time is over; says once a second how far it is. */
int over(void);
/* Begins the time anew: what had to be made ready is ready. */
void ready(void);
/* Writes a note for a reader of the console. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Writes a short text into a file of the kernel; returns whether it took it. */
int put(const char *path, const char *text);
/* Reads a small file as text into `text`; returns its length, 0 if there is nothing. */
size_t get(const char *path, char *text, size_t size);
/* Maps `resourceN` of a PCI device; returns NULL where it is no memory, and its size. */
volatile uint8_t *map_resource(const char *device, int number, size_t *size);
/* Calls a function with each PCI device's address, such as 0000:00:03.0. */
void each_pci(void (*look)(const char *device, void *more), void *more);

/* The attacks; each returns when its time is over. */
typedef void attack(const struct words *words);

attack crashme, portio, config, windows, tis, rings, eject, events, translate, liar, flood, uplink;

#endif
