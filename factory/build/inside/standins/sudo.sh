#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# sudo for a build box, where everybody is root already: drops the options, keeps the environment, runs the program.
while [[ ${1:-} == -* ]]; do shift; done
exec "$@"
