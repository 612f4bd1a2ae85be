# One target carries what every translation unit of the project is compiled with.
add_library(relay_build_flags INTERFACE)
target_compile_options(relay_build_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
  -ffp-contract=off                       # results must not depend on what a compiler fuses
  $<$<BOOL:${RELAY_WERROR}>:-Werror>)
target_compile_definitions(relay_build_flags INTERFACE _POSIX_C_SOURCE=200809L)
if(RELAY_SANITIZE)
  target_compile_options(relay_build_flags INTERFACE -fsanitize=${RELAY_SANITIZE} -fno-omit-frame-pointer -g)
  target_link_options(relay_build_flags INTERFACE -fsanitize=${RELAY_SANITIZE})
endif()
