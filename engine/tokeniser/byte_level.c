#include "byte_level.h"

/* The bytes 00-20, 7F-A0 and AD have no printable character of their own. */
uint32_t eng_byte_level_code(unsigned char byte) {
    if (byte <= 0x20) return 0x100u + byte;
    if (byte >= 0x7F && byte <= 0xA0) return 0x121u + (byte - 0x7Fu);
    if (byte == 0xAD) return 0x143u;
    return byte;
}

int eng_byte_level_byte(uint32_t code) {
    if (code <= 0xFF) return eng_byte_level_code((unsigned char)code) == code ? (int)code : -1;
    if (code <= 0x120) return (int)(code - 0x100);
    if (code <= 0x142) return (int)(code - 0x121 + 0x7F);
    return code == 0x143 ? 0xAD : -1;
}
