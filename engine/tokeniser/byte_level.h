/* The byte-level alphabet: each of the 256 bytes has a printable character that stands for it. */
#ifndef RELAY_ENGINE_BYTE_LEVEL_H
#define RELAY_ENGINE_BYTE_LEVEL_H

#include <stdint.h>

/* Printable Latin-1 stands for itself, the others for U+0100 and up in order. */
uint32_t eng_byte_level_code(unsigned char byte);

/* The byte that a character stands for, or -1. */
int eng_byte_level_byte(uint32_t code);

#endif
