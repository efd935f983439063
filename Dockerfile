# A CPU build: everything that `make reproduce` and `make test` need but data sets.
#   docker build -t ddlib . && docker run --rm -p 8888:8888 ddlib
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /ddlib
COPY . .
RUN PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make .venv/bin/.installed
EXPOSE 8888
CMD [".venv/bin/jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--allow-root"]
