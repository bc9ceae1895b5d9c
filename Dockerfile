# docker build -t rela .                                    runs on the CPU and, with --gpus all, on NVIDIA GPUs
# docker build -t rela --build-arg TORCH_INDEX=ADDRESS .    torch from another index, such as its builds for the CPU alone
# docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" rela train +budget=0.5
ARG BASE=python:3.12-slim
FROM ${BASE}

ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# torch first, in a layer of its own: it is large and changes seldom.
RUN python -m pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision

COPY pyproject.toml README.md LICENSE /src/
COPY rela_cli /src/rela_cli
COPY conf /src/conf
RUN python -m pip install /src && rm -r /src

# Not root. HOME is open to any user, so that --user works.
RUN useradd --create-home --uid 1000 rela && chmod 0777 /home/rela && mkdir /work && chown rela /work
ENV HOME=/home/rela MPLCONFIGDIR=/tmp/matplotlib
USER rela
WORKDIR /work
ENTRYPOINT ["rela"]
CMD ["--help"]
