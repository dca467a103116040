# CPU only: docker build -t maskgit . && docker run --rm -v "$PWD:/work" maskgit \
#   --images /work/photo.png --masks /work/hole.png --output /work/repaired
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /suite
COPY . .
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN make .venv/.maskgit
ENTRYPOINT [".venv/bin/python", "inpainting.py", "--config", "config/cats64.yml"]
