# What a wheel carries of the C build (pyproject.toml): the library beside the Python files, by one name,
# since a wheel has no symbolic links.
install(FILES $<TARGET_FILE:relayattn_shared> DESTINATION relay_attention_port RENAME librelayattn.so COMPONENT python)
if(RELAY_CUDA)
  install(TARGETS relayattn_cuda LIBRARY DESTINATION relay_attention_port COMPONENT python)
endif()
