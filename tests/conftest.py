import os

# Read by OpenMP when torch loads it: threads that spin while they wait make a busy machine of two
# cores twenty times slower. Child processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
